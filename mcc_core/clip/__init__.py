"""Seeds of a frozen CLIP, without training (CLIP-ES, CVPR 2023). Needs the extra `clip`."""
