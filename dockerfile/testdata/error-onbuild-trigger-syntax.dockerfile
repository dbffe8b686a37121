FROM trigger-syntax
