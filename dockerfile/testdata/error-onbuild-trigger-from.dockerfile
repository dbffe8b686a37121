FROM trigger-from
