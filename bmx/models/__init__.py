"""Models: MLP, CNN, GPT, BERT, mixture of experts, and their layers."""
