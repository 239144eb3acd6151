"""Ranking of users, its metrics, significance over users, and recommendations."""
