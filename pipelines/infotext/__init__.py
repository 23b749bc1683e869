"""Generation data as text: reading, writing, and what stands in the way of a picture."""
