"""How the zeros are shared out among the layers; every way keeps the average that was asked for."""
