FROM debian
RUN apt-get update \
 && apt-get install -y --no-install-recommends nginx-light \
 && rm -rf /var/lib/apt/lists/*
COPY index.html /var/www/html/index.html
RUN sed -i 's/listen 80 default_server;/listen 127.0.0.1:8087 default_server;/; /listen \[::\]/d' /etc/nginx/sites-available/default
EXPOSE 8087
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
