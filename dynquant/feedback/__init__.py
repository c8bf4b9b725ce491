"""Error feedback: second moments become factors, and a guard decides where they are used."""
