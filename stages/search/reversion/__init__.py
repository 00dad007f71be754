"""The accuracy-aware search: layers return to floating point until an accuracy budget holds."""
