// A Vulkan layer for tools/isa. It writes the driver's output for every compute pipeline into the folder $MACHINE_CODE:
// NNNN.name (its debug name), NNNN.spv (the SPIR-V), NNNN.stats (one line "NAME<tab>NUMBER" per statistic) and
// NNNN.REPRESENTATION.txt (the driver's internal representations, including machine code).
//
// It adds VK_KHR_pipeline_executable_properties to the device unless the program did. Bounds checks stay as the program
// requests them; MACHINE_CODE_UNCHECKED=1 switches the driver's off, to measure their cost.
//
// Stand-ins for kernel drivers never write the value of a timeline semaphore, so this layer answers for them: each
// submission is done as soon as it is made.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vulkan/vulkan.h>
#include <vulkan/vk_layer.h>

#define EXPORT __attribute__((visibility("default")))
#define MOST 65536

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static PFN_vkGetInstanceProcAddr next_gipa;
static PFN_vkGetDeviceProcAddr next_gdpa;
static PFN_vkCreateShaderModule next_module;
static PFN_vkCreateComputePipelines next_pipelines;
static PFN_vkQueueSubmit next_submit;
static PFN_vkGetPipelineExecutablePropertiesKHR get_properties;
static PFN_vkGetPipelineExecutableStatisticsKHR get_statistics;
static PFN_vkGetPipelineExecutableInternalRepresentationsKHR get_representations;

static struct { uint64_t handle; void *code; size_t size; } modules[MOST];
static size_t module_count;
static struct { uint64_t handle; int number; } pipelines[MOST];
static size_t pipeline_count;
static int counter;
static struct { VkSemaphore handle; uint64_t value; } semaphores[256]; // values that submissions signal
static size_t semaphore_count;

static void stop(const char *what) {
    fprintf(stderr, "machine-code layer: %s\n", what);
    _Exit(9);
}

static FILE *out(int number, const char *suffix) {
    const char *folder = getenv("MACHINE_CODE");
    char path[4096];
    snprintf(path, sizeof path, "%s/%04d.%s", folder ? folder : ".", number, suffix);
    FILE *f = fopen(path, "wb");
    if (!f) { perror(path); stop("cannot write"); }
    return f;
}

static VKAPI_ATTR VkResult VKAPI_CALL make_instance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *a, VkInstance *instance) {
    VkLayerInstanceCreateInfo *link = (void *)info->pNext;
    while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO)) link = (void *)link->pNext;
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    next_gipa = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    return ((PFN_vkCreateInstance)next_gipa(NULL, "vkCreateInstance"))(info, a, instance);
}

static void uncheck(const VkDeviceCreateInfo *info) {
    for (VkBaseOutStructure *s = (void *)info->pNext; s; s = s->pNext) {
        if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2) ((VkPhysicalDeviceFeatures2 *)s)->features.robustBufferAccess = 0;
        if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ROBUSTNESS_2_FEATURES_EXT) ((VkPhysicalDeviceRobustness2FeaturesEXT *)s)->robustBufferAccess2 = 0;
    }
    if (info->pEnabledFeatures) ((VkPhysicalDeviceFeatures *)info->pEnabledFeatures)->robustBufferAccess = 0;
}

static VKAPI_ATTR VkResult VKAPI_CALL make_device(VkPhysicalDevice physical, const VkDeviceCreateInfo *info, const VkAllocationCallbacks *a, VkDevice *device) {
    VkLayerDeviceCreateInfo *link = (void *)info->pNext;
    while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO)) link = (void *)link->pNext;
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    PFN_vkGetInstanceProcAddr gipa = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    next_gdpa = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;

    VkDeviceCreateInfo mine = *info;
    const char *names[256];
    if (info->enabledExtensionCount >= 256) stop("more than 255 device extensions");
    int has_extension = 0;
    for (uint32_t i = 0; i < info->enabledExtensionCount; i++) {
        names[i] = info->ppEnabledExtensionNames[i];
        if (!strcmp(names[i], VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME)) has_extension = 1;
    }
    if (!has_extension) names[mine.enabledExtensionCount++] = VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME;
    mine.ppEnabledExtensionNames = names;

    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR feature = {
        VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR, (void *)info->pNext, VK_TRUE};
    VkBaseOutStructure *own = (void *)info->pNext;
    while (own && own->sType != feature.sType) own = own->pNext;
    if (own) ((VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR *)own)->pipelineExecutableInfo = VK_TRUE;
    else mine.pNext = &feature;
    if (getenv("MACHINE_CODE_UNCHECKED")) uncheck(&mine);

    VkResult r = ((PFN_vkCreateDevice)gipa(NULL, "vkCreateDevice"))(physical, &mine, a, device);
    if (r) { fprintf(stderr, "machine-code layer: vkCreateDevice returns %d\n", r); return r; }
#define GET(f, n) f = (void *)next_gdpa(*device, n)
    GET(next_module, "vkCreateShaderModule");
    GET(next_pipelines, "vkCreateComputePipelines");
    GET(next_submit, "vkQueueSubmit");
    GET(get_properties, "vkGetPipelineExecutablePropertiesKHR");
    GET(get_statistics, "vkGetPipelineExecutableStatisticsKHR");
    GET(get_representations, "vkGetPipelineExecutableInternalRepresentationsKHR");
    return r;
}

static VKAPI_ATTR VkResult VKAPI_CALL make_module(VkDevice d, const VkShaderModuleCreateInfo *info, const VkAllocationCallbacks *a, VkShaderModule *m) {
    VkResult r = next_module(d, info, a, m);
    if (r) { fprintf(stderr, "machine-code layer: vkCreateShaderModule returns %d\n", r); return r; }
    pthread_mutex_lock(&lock);
    if (module_count == MOST) stop("too many modules");
    void *copy = malloc(info->codeSize);
    if (!copy) stop("no memory");
    memcpy(copy, info->pCode, info->codeSize);
    modules[module_count].handle = (uint64_t)*m;
    modules[module_count].code = copy;
    modules[module_count++].size = info->codeSize;
    pthread_mutex_unlock(&lock);
    return r;
}

static void write_statistics(VkDevice d, const VkPipelineExecutableInfoKHR *executable, FILE *f) {
    uint32_t count = 128;
    VkPipelineExecutableStatisticKHR s[128];
    for (int i = 0; i < 128; i++) s[i] = (VkPipelineExecutableStatisticKHR){VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR};
    get_statistics(d, executable, &count, s);
    for (uint32_t i = 0; i < count; i++) {
        fprintf(f, "%s\t", s[i].name);
        switch (s[i].format) {
            case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_BOOL32_KHR: fprintf(f, "%u\n", s[i].value.b32); break;
            case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_INT64_KHR: fprintf(f, "%lld\n", (long long)s[i].value.i64); break;
            case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_UINT64_KHR: fprintf(f, "%llu\n", (unsigned long long)s[i].value.u64); break;
            default: fprintf(f, "%g\n", s[i].value.f64);
        }
    }
}

static void write_representations(VkDevice d, const VkPipelineExecutableInfoKHR *executable, int number) {
    uint32_t count = 32;
    VkPipelineExecutableInternalRepresentationKHR r[32];
    for (int i = 0; i < 32; i++) r[i] = (VkPipelineExecutableInternalRepresentationKHR){VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INTERNAL_REPRESENTATION_KHR};
    get_representations(d, executable, &count, r); // returns only sizes
    for (uint32_t i = 0; i < count; i++) r[i].pData = calloc(1, r[i].dataSize + 1);
    get_representations(d, executable, &count, r);
    for (uint32_t i = 0; i < count; i++) {
        char suffix[300];
        snprintf(suffix, sizeof suffix, "%s.txt", r[i].name);
        for (char *c = suffix; *c; c++) if (*c == ' ' || *c == '/') *c = '_';
        FILE *f = out(number, suffix);
        if (r[i].pData) fwrite(r[i].pData, 1, strnlen(r[i].pData, r[i].dataSize), f);
        fclose(f);
        free(r[i].pData);
    }
}

static void write_pipeline(VkDevice d, VkPipeline p, int number) {
    FILE *f = out(number, "stats");
    VkPipelineInfoKHR which = {VK_STRUCTURE_TYPE_PIPELINE_INFO_KHR, NULL, p};
    uint32_t count = 16;
    VkPipelineExecutablePropertiesKHR properties[16];
    for (int i = 0; i < 16; i++) properties[i] = (VkPipelineExecutablePropertiesKHR){VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_PROPERTIES_KHR};
    get_properties(d, &which, &count, properties);
    for (uint32_t e = 0; e < count; e++) {
        fprintf(f, "executable\t%s\nsubgroup size\t%u\n", properties[e].name, properties[e].subgroupSize);
        VkPipelineExecutableInfoKHR executable = {VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR, NULL, p, e};
        write_statistics(d, &executable, f);
        write_representations(d, &executable, number);
    }
    fclose(f);
}

static VKAPI_ATTR VkResult VKAPI_CALL make_pipelines(VkDevice d, VkPipelineCache cache, uint32_t n, const VkComputePipelineCreateInfo *info, const VkAllocationCallbacks *a, VkPipeline *p) {
    VkResult result = VK_SUCCESS;
    for (uint32_t i = 0; i < n; i++) {
        VkComputePipelineCreateInfo mine = info[i];
        mine.flags |= VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR | VK_PIPELINE_CREATE_CAPTURE_INTERNAL_REPRESENTATIONS_BIT_KHR;
        pthread_mutex_lock(&lock);
        int number = counter++;
        for (size_t m = module_count; m-- > 0;) { // the newest first, because handles are reused
            if (modules[m].handle != (uint64_t)info[i].stage.module) continue;
            FILE *f = out(number, "spv");
            fwrite(modules[m].code, 1, modules[m].size, f);
            fclose(f);
            break;
        }
        pthread_mutex_unlock(&lock);
        VkResult r = next_pipelines(d, cache, 1, &mine, a, &p[i]);
        if (r) { fprintf(stderr, "machine-code layer: pipeline %04d: vkCreateComputePipelines returns %d\n", number, r); result = r; continue; }
        pthread_mutex_lock(&lock);
        if (pipeline_count == MOST) stop("too many pipelines");
        write_pipeline(d, p[i], number);
        pipelines[pipeline_count].handle = (uint64_t)p[i];
        pipelines[pipeline_count++].number = number;
        pthread_mutex_unlock(&lock);
    }
    return result;
}

static VKAPI_ATTR VkResult VKAPI_CALL set_name(VkDevice d, const VkDebugUtilsObjectNameInfoEXT *info) {
    (void)d;
    if (info->objectType == VK_OBJECT_TYPE_PIPELINE && info->pObjectName) {
        pthread_mutex_lock(&lock);
        for (size_t i = pipeline_count; i-- > 0;) {
            if (pipelines[i].handle != info->objectHandle) continue;
            FILE *f = out(pipelines[i].number, "name");
            fprintf(f, "%s\n", info->pObjectName);
            fclose(f);
            break;
        }
        pthread_mutex_unlock(&lock);
    }
    return VK_SUCCESS;
}

static void signalled(VkSemaphore handle, uint64_t value) {
    size_t i = 0;
    while (i < semaphore_count && semaphores[i].handle != handle) i++;
    if (i == semaphore_count) {
        if (semaphore_count == sizeof semaphores / sizeof *semaphores) stop("too many semaphores");
        semaphores[semaphore_count++].handle = handle;
    }
    if (semaphores[i].value < value) semaphores[i].value = value;
}

static VKAPI_ATTR VkResult VKAPI_CALL submit(VkQueue queue, uint32_t count, const VkSubmitInfo *submits, VkFence fence) {
    VkResult result = next_submit(queue, count, submits, fence);
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < count; i++)
        for (const VkBaseInStructure *s = submits[i].pNext; s; s = s->pNext) {
            if (s->sType != VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO) continue;
            const VkTimelineSemaphoreSubmitInfo *values = (const void *)s;
            for (uint32_t k = 0; k < values->signalSemaphoreValueCount && k < submits[i].signalSemaphoreCount; k++)
                signalled(submits[i].pSignalSemaphores[k], values->pSignalSemaphoreValues[k]);
        }
    pthread_mutex_unlock(&lock);
    return result;
}

static VKAPI_ATTR VkResult VKAPI_CALL get_value(VkDevice d, VkSemaphore handle, uint64_t *value) {
    (void)d;
    *value = 0;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < semaphore_count; i++) if (semaphores[i].handle == handle) *value = semaphores[i].value;
    pthread_mutex_unlock(&lock);
    return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL wait_semaphores(VkDevice d, const VkSemaphoreWaitInfo *info, uint64_t timeout) {
    (void)d, (void)info, (void)timeout;
    return VK_SUCCESS;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL gdpa(VkDevice d, const char *name) {
    if (!strcmp(name, "vkQueueSubmit")) return (PFN_vkVoidFunction)submit;
    if (!strcmp(name, "vkGetSemaphoreCounterValue") || !strcmp(name, "vkGetSemaphoreCounterValueKHR")) return (PFN_vkVoidFunction)get_value;
    if (!strcmp(name, "vkWaitSemaphores") || !strcmp(name, "vkWaitSemaphoresKHR")) return (PFN_vkVoidFunction)wait_semaphores;
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)gdpa;
    if (!strcmp(name, "vkCreateShaderModule")) return (PFN_vkVoidFunction)make_module;
    if (!strcmp(name, "vkCreateComputePipelines")) return (PFN_vkVoidFunction)make_pipelines;
    if (!strcmp(name, "vkSetDebugUtilsObjectNameEXT")) return (PFN_vkVoidFunction)set_name;
    return next_gdpa(d, name);
}

EXPORT VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL machine_code_gipa(VkInstance instance, const char *name) {
    if (!strcmp(name, "vkGetInstanceProcAddr")) return (PFN_vkVoidFunction)machine_code_gipa;
    if (!strcmp(name, "vkCreateInstance")) return (PFN_vkVoidFunction)make_instance;
    if (!strcmp(name, "vkCreateDevice")) return (PFN_vkVoidFunction)make_device;
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)gdpa;
    if (!strcmp(name, "vkCreateShaderModule")) return (PFN_vkVoidFunction)make_module;
    if (!strcmp(name, "vkCreateComputePipelines")) return (PFN_vkVoidFunction)make_pipelines;
    if (!strcmp(name, "vkQueueSubmit") || !strncmp(name, "vkGetSemaphoreCounterValue", 26) || !strncmp(name, "vkWaitSemaphores", 16))
        return gdpa(NULL, name);
    // the loader queries this device function here
    if (!strcmp(name, "vkSetDebugUtilsObjectNameEXT")) return (PFN_vkVoidFunction)set_name;
    return next_gipa ? next_gipa(instance, name) : NULL;
}

EXPORT VKAPI_ATTR VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *v) {
    v->loaderLayerInterfaceVersion = 2;
    v->pfnGetInstanceProcAddr = machine_code_gipa;
    v->pfnGetDeviceProcAddr = gdpa;
    v->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
