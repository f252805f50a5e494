"""Load tests: users of a ranking system in a closed loop of locust, requests at constant rates, and the point of saturation."""
