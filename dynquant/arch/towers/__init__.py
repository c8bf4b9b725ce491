"""What projectors have in common: the settings around a tower, vision encoders, audio encoders."""
