"""Noise, schedules, samplers, prompts over a pass, and the guided denoiser."""
