"""The attention backbone: ViT-VQGAN's encoder and decoder (Yu et al. 2022, section 3.1)."""

from vqvae.layers import TransformerBlock, patch_backbone

ATTENTION = patch_backbone(lambda config: TransformerBlock(config.width, config.head_size, config.mlp_ratio))
