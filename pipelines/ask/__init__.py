"""What is asked for, as plain data: settings, request, plan, prompts and names."""
