"""The page that tells what a run learned (`densecl report`)."""
