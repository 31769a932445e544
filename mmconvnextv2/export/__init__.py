"""Export of trained models: ONNX, ``torch.export``, Hugging Face, timm, and safetensors with a model card."""
