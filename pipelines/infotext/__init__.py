"""Generation data as text: reading it, writing it, and checking what cannot be reproduced."""
