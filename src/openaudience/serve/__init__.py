"""``openaudience serve`` (OP-14, OP-41, OP-42, OP-44): the doors, the intake, the workers, the mail, the health page.

Each part is a process of its own; what they share is the catalog, the home's folders and published files. The
supervisor starts them, starts again what died, and ends them. ``parts`` lists them; ``life`` is what each has of the
process it runs in.
"""
