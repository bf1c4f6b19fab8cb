"""Pictoscenes: a world of one to three subjects a scene, for what Pictoworld's single subjects cannot ask."""
