"""What the mixture is made of: a module per kind, each with functions that make a lesson.

A maker takes a stream of draws, a function that sizes text in tokens, and room in tokens:

    maker(draw, size, room) -> Lesson
"""
