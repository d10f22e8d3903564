# Dockerfile.worker's build of llama.cpp: `llama.sh BACKEND FOLDER` leaves the package llama_cpp in FOLDER.
#
# Compiles the version in /llama.txt, or installs a wheel from /wheels if there is one. The CPU kernels are compiled for each generation
# of CPUs, as libraries; the worker chooses one when it starts. Only what the package installs is built.
set -eu
backend=$1
folder=$2

set -- GGML_NATIVE=OFF GGML_BACKEND_DL=ON GGML_CPU_ALL_VARIANTS=ON LLAVA_BUILD=OFF CMAKE_INSTALL_BINDIR=llama_cpp/lib
case $backend in
    cpu) ;;
    cuda) set -- "$@" GGML_CUDA=ON ${CUDA_ARCHITECTURES:+"CMAKE_CUDA_ARCHITECTURES=$CUDA_ARCHITECTURES"} ;;
    vulkan) set -- "$@" GGML_VULKAN=ON ;;
    rocm)
        HIPCXX="$(hipconfig -l)/clang"
        HIP_PATH=$(hipconfig -R)
        export HIPCXX HIP_PATH
        set -- "$@" GGML_HIP=ON ${ROCM_TARGETS:+"GPU_TARGETS=$ROCM_TARGETS"}
        ;;
    *)
        echo "BACKEND is $backend; it must be cpu, cuda, vulkan or rocm" >&2
        exit 1
        ;;
esac

for wheel in /wheels/llama_cpp_python-*.whl; do
    [ -e "$wheel" ] || break
    echo "installing $wheel instead of compiling llama.cpp"
    /opt/uv/bin/uv pip install --quiet --target "$folder" --no-deps "$wheel"
done

if [ ! -d "$folder/llama_cpp" ]; then
    printf '%s\n' 'scikit-build-core==0.11.6' 'cmake==4.1.2' 'ninja==1.13.0' >/tmp/constraints.txt
    count=$#
    while [ "$count" -gt 0 ]; do
        set -- "$@" --config-setting "cmake.define.$1"
        shift
        count=$((count - 1))
    done
    /opt/uv/bin/uv pip install --target "$folder" --no-deps --require-hashes --no-binary llama-cpp-python \
        --build-constraints /tmp/constraints.txt --config-setting 'build.targets=llama;llama-common' "$@" --requirements /llama.txt
fi

# A wheel contains each library three times instead of links, and headers that are not needed.
cd "$folder"
rm -rf include lib bin share
find . -maxdepth 1 -name '*.lock' -delete
cd llama_cpp/lib
for library in *.so.*.*; do
    [ -e "$library" ] || continue
    name=${library%.so.*}.so
    soname=$name.$(echo "${library#"$name".}" | cut -d. -f1)
    mv "$library" "$soname"
    rm -f "$name"
    ln -s "$soname" "$name"
done
ls -l
