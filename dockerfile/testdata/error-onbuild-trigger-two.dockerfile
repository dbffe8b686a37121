FROM trigger-two
