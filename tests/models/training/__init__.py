"""Trains the fixture: synthesizes speech, composes windows, trains a tiny Whisper, converts and measures it.

Needs packages the project itself does not (requirements.txt here); nothing in CI imports this.
"""
