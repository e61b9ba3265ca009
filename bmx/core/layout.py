"""Names of mesh axes, and the default axes of each named dimension.

Data only, so that a recipe can read it without importing jax.
"""

# Outermost first. Neighbouring devices differ in the last axis, so the axis that talks most (tensor
# parallelism, every layer, forward and backward) stands last and the one that talks least first.
AXES = ('pipe', 'data', 'fsdp', 'expert', 'seq', 'model')

# Logical dimension name -> mesh axes. () replicates. Parameters and activations share the table.
RULES: dict[str, tuple[str, ...]] = {
  'batch': ('data', 'fsdp', 'expert'),
  'length': ('seq',),
  'norm_length': ('seq',),  # length around norms; tensor layouts may add 'model' (Korthikanti 2022)
  'act_embed': (),
  'embed': ('fsdp',),
  'vocab': ('model',),
  'heads': ('model',),
  'kv': ('model',),
  'mlp': ('model',),
  'head': (),
  'norm': (),
  'position': (),
  'classes': (),
  'expert': ('expert',),
  'expert_batch': ('data', 'fsdp'),  # batch, where a token is with its expert
  'layers': ('pipe',),
}
