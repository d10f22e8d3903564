# Sourced by the RUN steps of both Dockerfiles: a site's additions to a build. Both are BuildKit secrets, which are not part of an image.
#
#   ca      all trusted certificate authorities as PEM, for sites with a proxy that intercepts TLS
#   index   address of the package index, with its password if it has one
if [ -s /run/secrets/ca ]; then
    export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca REQUESTS_CA_BUNDLE=/run/secrets/ca
fi
if [ -s /run/secrets/index ]; then
    PIP_INDEX_URL=$(cat /run/secrets/index)
    export PIP_INDEX_URL UV_DEFAULT_INDEX="$PIP_INDEX_URL"
fi
