"""A request as plain data: settings, request, plan, prompts and names."""
