"""Which files are images, by their names."""

#: Extensions of the files that are read, in small letters. What a file holds decides how it is read.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".npy")
