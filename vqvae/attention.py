"""The attention backbone: ViT-VQGAN's encoder and decoder (Yu et al. 2022, section 3.1)."""

from vqvae.layers import patch_backbone, transformer_block

ATTENTION = patch_backbone(lambda config: transformer_block(config.width, config.head_size, config.mlp_ratio))
