"""The elastic core, whose files are best read in this order.

- search_space: what is elastic, and the values that each group may take
- frozen_linear: a linear layer whose weights are frozen, and of which a prefix of rows and columns is active
- elastic_linear: such a layer without an adapter, beside a width that is cut
- elastic_lora: such a layer with the adapter, masked or plain; what a merge must equal
- weight_grid, grid_file: integers that a masked adapter is trained on, and merged into
- mask: which weights pruning kept
- super_network: a model with all of these, set to one choice at a time
- reordering: channels sorted by importance, so that a prefix keeps what matters
- narrowing, size: what a choice of widths cuts, and what the rest costs
- variants, mixture: layers with other zeros, and what a search lets layers choose
- merge_rule: which merge keeps the trained function
- sub_adapter: a chosen adapter on disk, in PEFT's format
- subnet, subnet_mixture: `best.json`: the chosen sub-network, and proof of what it belongs to
"""
