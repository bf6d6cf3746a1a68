# Products and the delta rule measured without a model; also the check of
# machines that lack the libraries of the tests. Built always, so that they keep
# building.
if(TARGET kernels)
  foreach(name linear delta)
    add_executable(bench_${name} ${CMAKE_CURRENT_LIST_DIR}/${name}.c)
    target_link_libraries(bench_${name} PRIVATE kernels)
    target_compile_options(bench_${name} PRIVATE ${STRICT_TESTS})
  endforeach()
  target_sources(bench_linear PRIVATE ${PROJECT_SOURCE_DIR}/node/peak.c)
endif()
