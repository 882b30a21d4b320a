"""Pictures that nodes make: contact sheets and Pareto figures."""
