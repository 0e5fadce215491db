"""The flags of each command. They are made from the settings, so that a setting is described in one place."""
