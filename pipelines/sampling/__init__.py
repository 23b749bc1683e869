"""Noise, schedules, samplers, and the denoiser that they walk."""
