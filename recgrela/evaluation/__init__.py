"""Ranking of users, its metrics, and statistics over users."""
