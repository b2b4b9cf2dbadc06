"""MNLI by a pretrained transformer (the paper's Figure 2): configurations, model, sentence pairs, fine-tuning."""
