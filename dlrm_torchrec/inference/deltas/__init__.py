"""Deltas: what one package has that its predecessor has not, to bring a copy or a server up to date."""
