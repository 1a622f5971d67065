"""Stage train: from a pretrained model to a super-adapter on its pruned weights."""
