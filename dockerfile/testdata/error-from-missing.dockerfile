FROM alpin:3
