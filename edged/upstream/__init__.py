"""The upstream's side: pools of h1, h2 and h3 connections over bound lines."""
