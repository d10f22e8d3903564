# Sourced by the RUN steps of both Dockerfiles: what a site adds to a build. Both are BuildKit secrets and leave no trace in an image.
#
#   ca      certificate authorities as PEM, all that are to be trusted, where a proxy opens TLS
#   index   address of the package index, with its password where it has one
if [ -s /run/secrets/ca ]; then
    export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca REQUESTS_CA_BUNDLE=/run/secrets/ca
fi
if [ -s /run/secrets/index ]; then
    PIP_INDEX_URL=$(cat /run/secrets/index)
    export PIP_INDEX_URL UV_DEFAULT_INDEX="$PIP_INDEX_URL"
fi
