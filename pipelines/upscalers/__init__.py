"""How pictures and latents are enlarged."""
