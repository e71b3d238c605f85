"""Patches of Horovod's source: the file, the faulty text, and its replacement."""

# Over Gloo, Horovod reserves the list of ranks but never resizes it. The check for stalled ranks loops over an empty
# list: it neither warns nor ends the job.
_STALLED_RANKS = (
    "horovod/common/gloo/gloo_controller.cc",
    "global_ranks_.reserve(size_);",
    "global_ranks_.resize(size_);",
)

# The connections of all operations ignore the chosen network interface. They use the address of the host's own name,
# often 127.0.0.1, where other machines cannot connect.
_NETWORK_INTERFACE = (
    "horovod/common/gloo/gloo_context.cc",
    "  auto dev = CreateDevice(device_attr);\n\n  global_ctx = global_context.ctx;",
    "  device_attr.iface = global_context.gloo_iface_;\n"
    "  auto dev = CreateDevice(device_attr);\n\n  global_ctx = global_context.ctx;",
)

# While another thread sends over the same connection, the receiving thread polls it in a busy loop and slows the
# others. With this patch it waits for the lock, 1 ms at most.
_SPINNING_THREAD = (
    "third_party/gloo/gloo/transport/tcp/pair.cc",
    "  std::unique_lock<std::mutex> lock(m_, std::try_to_lock);\n  if (!lock) {\n    return;\n  }\n",
    "  struct timespec limit;\n  clock_gettime(CLOCK_REALTIME, &limit);\n"
    "  limit.tv_sec += (limit.tv_nsec += 1000000) / 1000000000;\n  limit.tv_nsec %= 1000000000;\n"
    "  if (pthread_mutex_timedlock(m_.native_handle(), &limit) != 0) {\n    return;\n  }\n"
    "  std::unique_lock<std::mutex> lock(m_, std::adopt_lock);\n",
)

# `horovodrun` imports TensorFlow twice to ask which libraries Horovod was built with. The build now writes the answer
# beside the versions, so that ranks start at once.
_NOTED_CONTROLLERS = (
    (
        "CMakeLists.txt",
        r'"\"dummy\": \"none\"\n}"',
        r'"\"mpi\": \"${HAVE_MPI}\",\n\"gloo\": \"${HAVE_GLOO}\",\n\"dummy\": \"none\"\n}"',
    ),
    (
        "horovod/common/util.py",
        "@_cache\ndef mpi_built(",
        "def _was_built_with(controller):\n"
        "    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))\n"
        "    with open(os.path.join(folder, 'metadata.json')) as f:\n"
        "        return json.load(f)[controller] == 'TRUE'\n\n\n"
        "@_cache\ndef mpi_built(",
    ),
    *(
        (
            "horovod/common/util.py",
            f"        built_fn = lambda ext: ext.{controller}_built()\n        result = _check_extension_lambda(\n"
            f"            ext_base_name, built_fn, 'built with {name}', verbose)\n",
            f"        result = _was_built_with('{controller}')\n",
        )
        for controller, name in (("mpi", "MPI"), ("gloo", "Gloo"))
    ),
)

# Half of the compilation time went into debug information and into a second Gloo, for C++11, which the TensorFlow part
# does not link (it links the one for C++17). The two slowest files, a third of the remaining time, were compiled last,
# when nothing was left to compile in parallel. Compile them first.
_COMPILATION = (
    ("CMakeLists.txt", "add_subdirectory(third_party/gloo)", "add_subdirectory(third_party/gloo EXCLUDE_FROM_ALL)"),
    ("CMakeLists.txt", 'REPLACE "-O2" "-O3" CMAKE_CXX_FLAGS_REL', 'REPLACE "-O2 -g" "-O3" CMAKE_CXX_FLAGS_REL'),
    ("horovod/tensorflow/CMakeLists.txt", "SHARED ${SOURCES} ${TF_SOURCES}", "SHARED ${TF_SOURCES} ${SOURCES}"),
)

PATCHES = (_STALLED_RANKS, _NETWORK_INTERFACE, _SPINNING_THREAD, *_NOTED_CONTROLLERS, *_COMPILATION)
