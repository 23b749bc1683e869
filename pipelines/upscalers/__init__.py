"""Upscalers for pictures and latents."""
