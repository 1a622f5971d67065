"""The demo of elastic widths: a model cut to size, beside LoRA at full width."""
