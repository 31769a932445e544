"""Trained models for other programs: ONNX, ``torch.export``, Hugging Face, timm, and safetensors with a model card."""
