# Cascade Mask R-CNN from raw FCMAE weights: learning rate and decay of the Mask R-CNN recipes, inside the sweep of
# arXiv 2301.00808, appendix A.3, and drop path of sizes.py. The leaves of 0.1 pair these weights with ConvNeXt V1's
# rates for supervised ones: decays of 0.7 and 0.8, which leave the stem 8 % (tiny), 5 % (base) or 1 % of the learning
# rate.
_base_ = './cascade-mask-rcnn_ms-crop-3x_coco.py'
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
