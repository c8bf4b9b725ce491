"""What the user wants: the recipe language, and which tensor each of a recipe's rules takes."""
