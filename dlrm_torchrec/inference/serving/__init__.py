"""An HTTP endpoint for a package: raw feature values in, probabilities out."""
