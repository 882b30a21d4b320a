"""Studies in a world of Gaussian mixtures, whose every answer is known in closed form."""
