#!/bin/sh
echo "$GREETING from $(cat /app/version)"
