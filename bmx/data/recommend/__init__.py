"""Recommendation: categories of click models, ratings of users."""
