FROM --platform=$BULIDPLATFORM alpine
